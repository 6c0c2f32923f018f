"""Graph mode: off for eager, on with `graph.enabled=True`."""

from libai.config import LazyCall

from projects.SegFormer.engine.graph import SegformerGraph

graph = dict(
    enabled=False,
    # LiBai's printout of the graph: -1 for none, 0 to 3 for more and more.
    debug=-1,
    train_graph=LazyCall(SegformerGraph)(is_train=True),
    eval_graph=LazyCall(SegformerGraph)(is_train=False),
)
