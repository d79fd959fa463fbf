#!/bin/sh
# Whole again: it mounts as it always did, every byte is right, no scrub or check finds anything.
set -eu
umount "$MNT"
btrfs device scan --forget
btrfs device scan
mount -t btrfs "${DISK}1" "$MNT"
cd "$MNT"
sha256sum --quiet --check /tmp/raid/digests.txt
test "$(find . -type f | wc -l)" -eq 40
btrfs scrub start -B -R "$MNT" | tee /tmp/raid/scrub-again.txt
awk '/_errors:/ { seen++; if ($2 != 0) wrong = 1 } END { exit wrong || seen < 7 }' /tmp/raid/scrub-again.txt
btrfs device stats --check "$MNT"
cd /
umount "$MNT"
btrfs check --readonly "${DISK}1"
btrfs filesystem show "${DISK}6"
