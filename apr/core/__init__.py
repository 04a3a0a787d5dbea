"""Ground floor: errors, seeds, parameters, atomic files, recipes. Imports nothing of `apr`."""
