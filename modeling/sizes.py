"""The sizes of the paper's models (table 6): a value a stage, and the channels of the head."""

_WIDE = (64, 128, 320, 512)

SIZES = {
    "b0": dict(depths=(2, 2, 2, 2), hidden_sizes=(32, 64, 160, 256), decoder_hidden_size=256),
    "b1": dict(depths=(2, 2, 2, 2), hidden_sizes=_WIDE, decoder_hidden_size=256),
    "b2": dict(depths=(3, 4, 6, 3), hidden_sizes=_WIDE, decoder_hidden_size=768),
    "b3": dict(depths=(3, 4, 18, 3), hidden_sizes=_WIDE, decoder_hidden_size=768),
    "b4": dict(depths=(3, 8, 27, 3), hidden_sizes=_WIDE, decoder_hidden_size=768),
    "b5": dict(depths=(3, 6, 40, 3), hidden_sizes=_WIDE, decoder_hidden_size=768),
}
