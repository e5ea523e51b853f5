"""The kinds of prediction that metrics judge. A kind is one module here and has its name:

EXPECTED: what a prediction and its reference are, in words.
METRICS: {name: Metric}. A new metric is a new entry.
fits(prediction, reference): whether the two are of this kind.
check(prediction, reference): raises UserError if no metric can judge a pair that fits; a kind whose
  pairs can all be judged has no such function.
baseline(references, seen): the same answer for every reference, chosen by the references `seen`; a
  kind for which no such answer means anything has no such function.
"""
