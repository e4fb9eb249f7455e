"""Groups of measurements: what ``measure`` runs on a subject, one file per question.

Each group is a function of a ``Context`` that yields readings; the mathematics is in the modules
beside this folder, as functions of plain tensors.
"""
