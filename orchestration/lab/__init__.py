"""Small teachers and students, trained from nothing, on which what distillation does can be seen in minutes."""
