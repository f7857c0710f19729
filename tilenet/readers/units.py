"""Units of length in micrometres, by the names that OME, UDUNITS and ImageJ use."""

_PREFIXES = {"pico": 1e-6, "nano": 1e-3, "micro": 1.0, "milli": 1e3, "centi": 1e4, "deci": 1e5, "": 1e6, "kilo": 1e9}
_SYMBOLS = {"pm": 1e-6, "nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "mm": 1e3, "cm": 1e4, "dm": 1e5, "m": 1e6}
_OTHERS = {"micron": 1.0, "microns": 1.0, "angstrom": 1e-4, "Å": 1e-4, "inch": 2.54e4, "in": 2.54e4}

MICROMETERS = (
    {f"{prefix}{meter}": um for prefix, um in _PREFIXES.items() for meter in ("meter", "metre", "meters", "metres")}
    | _SYMBOLS
    | _OTHERS
)
