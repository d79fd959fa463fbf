#!/bin/sh
# Data as RAID5 over five disks. Metadata has three copies: what is tested is the repair of data.
set -eux
mkfs.btrfs -f -d raid5 -m raid1c3 "${DISK}1" "${DISK}2" "${DISK}3" "${DISK}4" "${DISK}5"
mkdir -p "$MNT"
mount -t btrfs "${DISK}1" "$MNT"
btrfs filesystem usage -T "$MNT"
