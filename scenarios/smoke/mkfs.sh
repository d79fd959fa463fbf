#!/bin/sh
# Makes a filesystem of type $FS on $DISK and mounts it on $MNT.
set -eux
case $FS in
btrfs) mkfs.btrfs -f "$DISK" ;;
ext4) mkfs.ext4 -F "$DISK" ;;
xfs) mkfs.xfs -f "$DISK" ;;
esac
mkdir -p "$MNT"
mount -t "$FS" "$DISK" "$MNT"
findmnt "$MNT"
