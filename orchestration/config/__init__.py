"""The run's configuration: schema, composition, facts and the rules across rooms."""
