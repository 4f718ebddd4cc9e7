"""What a merge needs beside the tensors: its recipe, adapters, agreement of the sources, and routers between them."""
