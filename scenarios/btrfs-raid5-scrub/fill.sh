#!/bin/sh
# Files of many sizes, some smaller than a stripe, some across several; their digests are kept outside.
set -eu
mkdir -p /tmp/raid
mountpoint -q "$MNT"
cd "$MNT"
for number in $(seq 40); do
    mkdir -p "dir$((number % 7))"
    head -c $((number * number * 500 + number)) /dev/urandom >"dir$((number % 7))/file$number"
done
sync
find . -type f -exec sha256sum {} + >/tmp/raid/digests.txt
test "$(wc -l </tmp/raid/digests.txt)" -eq 40
cd /
umount "$MNT"
echo "40 files, digests kept outside"
