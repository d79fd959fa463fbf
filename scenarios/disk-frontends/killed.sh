#!/bin/sh
# Kills the owner of a pool while it serves a disk. Another one goes on: what the first left behind, a folder with nobody
# behind it and half a device, is in nobody's way, and everything that was flushed is there.
set -eux

pool=/tmp/killed.pool
mkdir -p /tmp/left
"$KILN" disk --pool "$pool" create disk --size 64M
"$KILN" disk --pool "$pool" own &
owner=$!
until "$KILN" disk --pool "$pool" ls >/dev/null; do sleep 0.1; done
"$KILN" disk --pool "$pool" serve disk --ublk --fuse /tmp/left >/tmp/where &
server=$!
until [ "$(wc -l </tmp/where)" = 2 ]; do
    kill -0 "$server"
    sleep 0.1
done
device=$(grep ublk /tmp/where)

head -c 1m /dev/urandom >/tmp/bytes
dd if=/tmp/bytes of="$device" bs=64k oflag=direct conv=fsync,notrunc
kill -KILL "$owner"
wait "$owner" || true
is_there() { head -c 1m "$1" | cmp - /tmp/bytes; }
until is_there "$device" && is_there /tmp/left/disk; do
    kill -0 "$server"
    sleep 0.2
done
test "$(ls -d /dev/ublkb* | wc -l)" = 1
test "$(ls -d /dev/ublkc* | wc -l)" = 1

head -c 1m /dev/urandom >/tmp/bytes
dd if=/tmp/bytes of=/tmp/left/disk bs=64k conv=fsync,notrunc
is_there "$device"
kill "$server"
wait "$server"
test ! -e "$device"
test -z "$(ls /tmp/left)"
"$KILN" disk --pool "$pool" verify
