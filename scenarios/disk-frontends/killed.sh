#!/bin/sh
# Kills the process that serves disks, and serves them again: what it left behind is in nobody's way.
set -eux

pool=/tmp/killed.pool
mkdir -p /tmp/left
"$KILN" disk --pool "$pool" create disk --size 64M

serve() { # WHERE
    "$KILN" disk --pool "$pool" own >/tmp/owner &
    owner=$!
    until "$KILN" disk --pool "$pool" ls >/dev/null; do sleep 0.1; done
    "$KILN" disk --pool "$pool" serve disk --ublk --fuse /tmp/left >"$1" &
    server=$!
    until [ -s "$1" ]; do
        kill -0 "$server"
        sleep 0.1
    done
}

serve /tmp/first
device=$(grep ublk /tmp/first)
head -c 1m /dev/urandom >/tmp/bytes
dd if=/tmp/bytes of="$device" bs=64k oflag=direct conv=fsync,notrunc
kill -KILL "$owner"
wait "$server" || true
# The kernel takes the device away by itself, and leaves the folder with nobody behind it.
while [ -e "$device" ]; do sleep 0.1; done
if ls /tmp/left; then exit 1; fi

serve /tmp/second
device=$(grep ublk /tmp/second)
test "$(ls -d /dev/ublkb* | wc -l)" = 1
test "$(ls -d /dev/ublkc* | wc -l)" = 1
head -c 1m "$device" | cmp - /tmp/bytes
head -c 1m /tmp/left/disk | cmp - /tmp/bytes
kill "$server"
wait "$server"
test ! -e "$device"
kill "$owner"
wait "$owner" || true
"$KILN" disk --pool "$pool" verify
