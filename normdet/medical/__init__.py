"""Images of labs and hospitals: read, prepared, and searched by a detector; `normdet[medical]`."""
