//! What happened: the recording of every run, the index over them, and every page told from them.
