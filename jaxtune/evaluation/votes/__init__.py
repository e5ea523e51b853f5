"""People's choices between two answers to one prompt, and what they say.

  order      which answer stands on the left, which pair comes next
  store      the database of answers and votes
  voting     who joins, votes and takes a vote back
  agreement  win rate, intervals, bias to a side, agreement between raters
  server     the page on which people choose, whose files are in page/

Nothing here knows models or runs: the answers are there before the first vote.
"""
