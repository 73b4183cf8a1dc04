"""What an experiment's counters say: pure statistics, evidence from replicas, the report, the guard and the comparison of two versions.

sequences, sample_ratio, clusters, paired   formulas; numbers in, numbers out
evidence, sources                           counters of one or many replicas as one value; where they are read from
report, guard                               what they say, and what is done about it
compare                                     two versions on the same raw inputs, before any traffic moves
"""
