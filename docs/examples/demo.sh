#!/bin/bash
# Shows the examples at work in the domain that is mounted at MOUNTPOINT.
# Status 0: everything was really seen; 1: something was not; 2: wrong usage.

if [ $# -ne 1 ]; then
	echo "usage: $0 MOUNTPOINT" >&2
	exit 2
fi
mountpoint=$1
here=$(cd "$(dirname "$0")" && pwd) || exit 1
bin=$here/bin
service=
status=0

# Waits up to 10 s for the service to end; its status.
reap() {
	for _ in $(seq 100); do
		if ! kill -0 "$service" 2>/dev/null; then
			wait "$service"
			return
		fi
		sleep 0.1
	done
	echo "the service does not end: killing it" >&2
	kill -KILL "$service"
	wait "$service" 2>/dev/null
	return 1
}

# shellcheck disable=SC2317 # the trap calls it
stop() {
	if [ -n "$service" ]; then
		kill -TERM "$service" 2>/dev/null
		reap
		service=
	fi
}
scratch=$(mktemp -d) || exit 1
trap 'stop; rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM

try() {
	echo
	echo "== $1"
	shift
	if ! timeout -k 5 20 "$@"; then
		echo "demo: that went wrong" >&2
		status=1
	fi
}

step() {
	try "$1" "$bin/kdbus-client" "$endpoint" "${@:2}"
}

make -s -C "$here" || exit 1
if [ ! -e "$mountpoint/control" ]; then
	echo "$mountpoint: no domain is mounted there" >&2
	exit 1
fi

echo "== A service makes a bus of its own and takes the name org.example.Echo"
mkfifo "$scratch/output" || exit 1
"$bin/kdbus-service" --make "$mountpoint" "demo-$$" >"$scratch/output" 2>&1 &
service=$!
exec {output}<"$scratch/output"
if ! IFS= read -r -t 10 endpoint <&"$output" || [ ! -e "$endpoint" ]; then
	echo "the service did not start: $endpoint" >&2
	exit 1
fi
# What the service says goes on to the output from here on.
cat <&"$output" &
reader=$!
exec {output}<&-
echo "$endpoint"
ls -l "$(dirname "$endpoint")"

step "Call and reply: request and answer in one system call" call "hello from kdbus"
step "The same with poll: other work can be done meanwhile" async "hello again"
step "A broadcast with a bloom filter, matched on the way: one subject is subscribed, the other is not" \
	signal weather sports
step "A memfd: the payload stays where it is" memfd "carried in a sealed memfd"
step "A descriptor: the service answers through the client's pipe" pipe "written straight into your pipe"
try "The ABI of August 2015, which systemd 220 to 234 speak: the same service on the same bus" \
	"$bin/kdbus-last" "$mountpoint" "$endpoint" "another abi"

echo
echo "== The service ends, and the bus with it"
kill -TERM "$service"
reap || status=1
service=
wait "$reader"
if [ -e "$endpoint" ]; then
	echo "$endpoint is still there" >&2
	status=1
fi
if [ "$status" -eq 0 ]; then
	echo "All of it was seen."
fi
exit "$status"
