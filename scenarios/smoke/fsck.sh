#!/bin/sh
# The filesystem's own checker must have nothing to say.
set -eux
umount "$MNT"
case $FS in
btrfs) btrfs check --readonly "$DISK" ;;
ext4) e2fsck -f -n "$DISK" ;;
xfs) xfs_repair -n "$DISK" ;;
esac
