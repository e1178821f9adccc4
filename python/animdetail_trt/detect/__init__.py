"""Finding segments in frames. Detectors are optional packages: importing this needs none of them."""
