"""AdapterHub's format: its layout, its writer and its reader."""
