#!/bin/sh
# The sixth disk takes the place of the missing one, rebuilt from the others.
set -eux
btrfs replace start -B -f 2 "${DISK}6" "$MNT"
btrfs replace status -1 "$MNT" | tee /tmp/raid/replace.txt
grep finished /tmp/raid/replace.txt
grep ' 0 write errs, 0 uncorr. read errs' /tmp/raid/replace.txt
btrfs filesystem show "$MNT" | tee /tmp/raid/show.txt
if grep -i missing /tmp/raid/show.txt; then
    echo "a disk is still missing"
    exit 1
fi
