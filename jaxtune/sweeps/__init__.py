"""Many trials compared: grids, groups, statistics, tables and plots."""
