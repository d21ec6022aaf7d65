"""What runs left, as figures and Markdown; pages of HTML are made by :mod:`normdet.files.page`."""
