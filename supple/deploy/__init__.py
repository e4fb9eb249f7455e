"""From checkpoint to robot: the bundle, its proof, and what runs it.

``export`` writes a bundle, ``verify`` replays it in every runtime that is here, ``chain`` runs it
against a simulated robot in another process. Imports of onnx and simulators happen on first use.
"""
