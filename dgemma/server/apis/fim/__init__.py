"""Fill in the middle, in Mercury's form and in llama.cpp's: schema, route, reply."""
