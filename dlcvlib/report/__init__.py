TITLE = "Image models, repeated"
