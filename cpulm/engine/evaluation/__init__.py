"""A trained model judged: the text it is given, the samples it writes, the questions it answers."""
