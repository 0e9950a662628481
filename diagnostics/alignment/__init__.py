"""Where a teacher's gradient helps."""
