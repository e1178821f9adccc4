"""How fast, how close to the limit, how close to the reference's pictures: ``animdetail-trt bench``."""
