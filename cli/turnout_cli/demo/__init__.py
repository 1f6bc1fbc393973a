"""`turnout demo`: the whole of Turnout on a cluster of its own, under real traffic, from nothing to a plot."""
