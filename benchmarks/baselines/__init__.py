"""What jaxpg is measured against."""
