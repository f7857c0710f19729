"""The fast paths of a U-Net: compiled convolutions on a CPU, matrix products of shifted rows on a GPU."""
