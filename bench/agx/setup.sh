#!/bin/sh
# setup.sh FOLDER: a Debian sid of its own in FOLDER, with all that bench/agx compiles with: Mesa's Asahi driver on a
# device that does nothing, clang, and the translator from LLVM IR to SPIR-V. Needs root and debootstrap; 1.8 GB, four
# minutes. Only sid's Mesa has the driver on x86-64. The mirror is the one that this machine's apt uses.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "$0: expected to run as root: debootstrap and chroot need it" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "$0: no debootstrap found: apt-get install debootstrap" >&2; exit 1; }

mirror=$(sed -n -e 's/^URIs: *\([^ ]*debian\)\/\{0,1\}$/\1/p' -e 's/^deb  *\(\[[^]]*\] *\)\{0,1\}\([^ ]*debian\)\/\{0,1\} .*/\2/p' \
  /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null | head -n 1)
[ -n "$mirror" ] || { echo "$0: no Debian mirror in /etc/apt/sources.list*" >&2; exit 1; }

rm -rf "$1" "$1.part"
mkdir -p "$1.part"
root=$(cd "$1.part" && pwd)
# A mirror's Release file may be past its date, which is no harm here; signatures are checked all the same.
printf 'Acquire::Check-Valid-Until "false";\nAcquire::Check-Date "false";\n' > "$root.apt"
APT_CONFIG="$root.apt" debootstrap --variant=minbase sid "$root" "$mirror"
mv "$root.apt" "$root/etc/apt/apt.conf.d/99dates"
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"  # no service is started
chmod +x "$root/usr/sbin/policy-rc.d"
cp /etc/resolv.conf "$root/etc/resolv.conf"
chroot "$root" apt-get update
chroot "$root" apt-get install --yes --no-install-recommends mesa-drm-shim mesa-opencl-icd ocl-icd-opencl-dev \
  clang-22 llvm-22 llvm-spirv-22 gcc libc6-dev
chroot "$root" apt-get clean
mkdir "$root/agx"
mv "$root" "$1"
