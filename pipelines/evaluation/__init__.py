"""The numbers of a depth: quality, intervals, gates, costs, and the decision between depths."""
