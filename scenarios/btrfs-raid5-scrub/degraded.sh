#!/bin/sh
# One disk forgets everything. The filesystem must mount without it and give back every byte.
set -eux
umount "$MNT"
wipefs --all --quiet "${DISK}2"
dd if=/dev/zero of="${DISK}2" bs=1M count=128 conv=fsync status=none
btrfs device scan --forget
for number in 1 3 4 5; do btrfs device scan "$DISK$number"; done
if mount -t btrfs "${DISK}1" "$MNT"; then
    echo "a filesystem with a missing disk was mounted without being told to"
    exit 1
fi
mount -t btrfs -o degraded "${DISK}1" "$MNT"
btrfs filesystem show "$MNT" | tee /tmp/raid/show.txt
grep -i missing /tmp/raid/show.txt
cd "$MNT"
sha256sum --quiet --check /tmp/raid/digests.txt
