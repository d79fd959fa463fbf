#!/bin/sh
# An image of three layers that other tools made, tars with lz4 in them: the kernel reads every byte they say is there,
# and finds a filesystem without a fault.
set -eux

cd /tmp
"$KILN" layer serve --ublk /data/l0.obd /data/l1.obd /data/l2.obd >where &
server=$!
until [ -s where ]; do
    kill -0 "$server"
    sleep 0.1
done
device=$(cat where)
test "$(blockdev --getsize64 "$device")" = 67108864
test "$(blockdev --getro "$device")" = 1
digest=d89786867f257fba737ef0cce09d9826c8a15b4d5e503a90ce3ad22cc5000e27
test "$(sha256sum <"$device")" = "$digest  -"
e2fsck -f -n "$device"
mkdir -p "$MNT"
mount -t ext4 -o ro "$device" "$MNT"
ls -lR "$MNT" >/dev/null
umount "$MNT"
kill "$server"
wait "$server"
test ! -e "$device"
rm where
