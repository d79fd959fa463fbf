#!/bin/sh
# Every byte is right when read from the disks, and nothing is left for a scrub of all disks.
set -eu
umount "$MNT"
mount -t btrfs "${DISK}1" "$MNT"
cd "$MNT"
sha256sum --quiet --check /tmp/raid/digests.txt
test "$(find . -type f | wc -l)" -eq 40
btrfs device stats --reset "$MNT" >/dev/null
btrfs scrub start -B -R "$MNT" | tee /tmp/raid/scrub-clean.txt
awk '/_errors:/ { seen++; if ($2 != 0) wrong = 1 } END { exit wrong || seen < 7 }' /tmp/raid/scrub-clean.txt
btrfs device stats --check "$MNT"
