"""The loss heads in Jittor: a folder that can be copied into another package as it is."""
