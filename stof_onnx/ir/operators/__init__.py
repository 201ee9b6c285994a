"""The stof operators: records of their attributes, and what each means (`expand`)."""
