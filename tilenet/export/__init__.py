"""Regions and objects of a mask as polygons (GeoJSON) and as tables (CSV)."""
