#!/bin/sh
# Serves a disk of a pool to this kernel by the frontend $1, makes a filesystem on it and uses that, and compares what
# the kernel reads from the device with what the pool exports meanwhile.
set -eux

frontend=$1
pool=/tmp/$frontend.pool
where=/tmp/$frontend.where
sectors=$((48 << 11))
"$KILN" disk --pool "$pool" create disk --size 48M

case $frontend in
nbd) how="--nbd unix:/tmp/nbd.sock" ;;
ublk) how="--ublk" ;;
fuse) mkdir /tmp/disks && how="--fuse /tmp/disks" ;;
esac
# shellcheck disable=SC2086
"$KILN" disk --pool "$pool" serve disk $how >"$where" &
server=$!
until [ -s "$where" ]; do
    kill -0 "$server"
    sleep 0.1
done

case $frontend in
nbd)
    device=/dev/nbd0
    nbd-client -unix /tmp/nbd.sock "$device" -N disk -C 2
    ;;
ublk) device=$(cat "$where") ;;
fuse) device=$(losetup --find --show --direct-io=on "$(cat "$where")") ;;
esac
queue=/sys/block/${device#/dev/}/queue
test "$(blockdev --getsz "$device")" = "$sectors"
test "$(cat "$queue/write_cache")" = "write back"
test "$(cat "$queue/discard_max_bytes")" -gt 0

# The device itself, past the page cache, from four threads.
fio --name=raw --filename="$device" --direct=1 --thread --ioengine=psync --numjobs=4 --group_reporting \
    --rw=randwrite --bs=4k --size=512k --offset_increment=8m --fsync=64 \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0
blkdiscard -f "$device"
test "$(head -c 25m "$device" | tr -d '\0' | wc -c)" = 0

mkfs.ext4 -q "$device"
mkdir -p "$MNT"
mount -t ext4 "$device" "$MNT"
fio --name=file --directory="$MNT" --thread --ioengine=psync --rw=randwrite --bs=16k --size=6m \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --end_fsync=1 --verify_state_save=0
for number in 1 2 3 4 5 6 7 8; do
    head -c $((number * 54321)) /dev/urandom >"$MNT/$number"
done
(cd "$MNT" && sha256sum 1 2 3 4 5 6 7 8) >/tmp/digests
umount "$MNT"
e2fsck -f -n "$device"
mount -t ext4 "$device" "$MNT"
(cd "$MNT" && sha256sum --check --quiet /tmp/digests)
rm "$MNT"/file*
sync
fstrim -v "$MNT"
umount "$MNT"
e2fsck -f -n "$device"
blockdev --flushbufs "$device"
"$KILN" disk --pool "$pool" export disk /tmp/disk.raw
cmp "$device" /tmp/disk.raw

case $frontend in
nbd) nbd-client -d "$device" ;;
ublk) ;;
fuse) losetup --detach "$device" ;;
esac
kill "$server"
wait "$server"
case $frontend in
ublk) test ! -e "$device" ;;
fuse) test -z "$(ls /tmp/disks)" ;;
esac

"$KILN" disk --pool "$pool" verify
rm -f "$pool" /tmp/disk.raw
