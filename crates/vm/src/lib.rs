//! One virtual machine as one QEMU process: from the question what may execute it to its certain end.
