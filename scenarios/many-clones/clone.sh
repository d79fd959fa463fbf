#!/bin/sh
# Writes its own 2 MiB to its clone, changes one of the prepared files, and checks that all else is as it was prepared.
set -eu
mount "$DISK" /mnt
cd /mnt
test ! -e own # nobody else was here
sha256sum --quiet --check digests

head -c 2M /dev/urandom >own
printf %s "$KILN_STAGE" | dd of=file1 conv=notrunc 2>/dev/null
sha256sum own file1 >/tmp/digests
cd /
umount /mnt

# From the disk, not from memory.
echo 3 >/proc/sys/vm/drop_caches
mount "$DISK" /mnt
cd /mnt
sha256sum --quiet --check /tmp/digests
grep -v ' file1$' digests | sha256sum --quiet --check -
cd /
umount /mnt
e2fsck -fn "$DISK"
