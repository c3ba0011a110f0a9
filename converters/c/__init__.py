"""What `converters.c_source` emits: the face that a header promises, int8 dense nets, ensembles of trees."""
