"""Read and prepare images of labs and hospitals, and run detectors on them; `normdet[medical]`."""
