"""The driver: commands, config, cluster, pipeline, stages, tracking."""
