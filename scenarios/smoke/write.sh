#!/bin/sh
# Writes through fio, which verifies what it reads back, and a small tree whose digests are remembered outside.
set -eux
mountpoint -q "$MNT"
cd "$MNT"
fio --name=verify --directory="$MNT" --thread --ioengine=psync \
    --rw=randwrite --bs=16k --size=24m --verify=crc32c --verify_fatal=1 --do_verify=1 --end_fsync=1
mkdir -p tree/a/b
for number in $(seq 20); do
    head -c $((number * 4321)) /dev/urandom >"tree/a/b/file$number"
done
ln -s a/b/file1 tree/link
find tree -type f -exec sha256sum {} + >/tmp/digests
sync
test "$(wc -l </tmp/digests)" -eq 20
