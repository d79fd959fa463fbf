#!/bin/sh
# What was written must be there after the filesystem left memory.
set -eux
umount "$MNT"
mount -t "$FS" "$DISK" "$MNT"
cd "$MNT"
sha256sum --quiet --check /tmp/digests
test "$(readlink tree/link)" = a/b/file1
fio --name=verify --directory="$MNT" --thread --ioengine=psync \
    --rw=randwrite --bs=16k --size=24m --verify=crc32c --verify_fatal=1 --verify_only
