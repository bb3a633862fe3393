// libsrtp 2 on standard input and output, as the far end of a stream. Each request and each answer is a length of two
// bytes (network order) and as many bytes; an answer of no bytes says that libsrtp has refused the packet.
//
//   libsrtp protect|unprotect|protect-rtcp|unprotect-rtcp SUITE [MKI:]KEY...   (in hex, the key with its salt)
//
// A first byte of each request names the key, counted from 0; it matters to protect only.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <srtp2/srtp.h>

enum { MAX_KEYS = 16, MAX_PACKET = 4096 };

static int unhex(const char *s, unsigned char *out) {
	int n = 0;
	unsigned v;
	for (; s[0] && s[1] && sscanf(s, "%2x", &v) == 1; s += 2) out[n++] = v;
	return n;
}

static void whole(int fd, void *buf, size_t n, int out) {
	for (size_t done = 0; done < n;) {
		ssize_t k = out ? write(fd, (char *)buf + done, n - done) : read(fd, (char *)buf + done, n - done);
		if (k <= 0) exit(done || out ? 1 : 0);
		done += k;
	}
}

int main(int argc, char **argv) {
	static srtp_master_key_t keys[MAX_KEYS];
	static unsigned char material[MAX_KEYS][64], mkis[MAX_KEYS][16];
	srtp_master_key_t *list[MAX_KEYS];
	srtp_policy_t policy;
	srtp_t session;
	if (argc < 4 || argc > 3 + MAX_KEYS) return 2;
	memset(&policy, 0, sizeof policy);

	const char *suite = argv[2];
	void (*set)(srtp_crypto_policy_t *) =
		!strcmp(suite, "AES_CM_128_HMAC_SHA1_80")   ? srtp_crypto_policy_set_rtp_default
		: !strcmp(suite, "AES_CM_128_HMAC_SHA1_32") ? srtp_crypto_policy_set_aes_cm_128_hmac_sha1_32
		: !strcmp(suite, "AES_256_CM_HMAC_SHA1_80") ? srtp_crypto_policy_set_aes_cm_256_hmac_sha1_80
		: !strcmp(suite, "AES_256_CM_HMAC_SHA1_32") ? srtp_crypto_policy_set_aes_cm_256_hmac_sha1_32
		: !strcmp(suite, "AEAD_AES_128_GCM")        ? srtp_crypto_policy_set_aes_gcm_128_16_auth
		: !strcmp(suite, "AEAD_AES_256_GCM")        ? srtp_crypto_policy_set_aes_gcm_256_16_auth
							    : NULL;
	if (!set || srtp_init()) return 2;
	set(&policy.rtp);
	set(&policy.rtcp);
	if (!strcmp(suite, "AES_CM_128_HMAC_SHA1_32")) srtp_crypto_policy_set_rtp_default(&policy.rtcp);
	if (!strcmp(suite, "AES_256_CM_HMAC_SHA1_32")) srtp_crypto_policy_set_aes_cm_256_hmac_sha1_80(&policy.rtcp);

	int use_mki = 0;
	for (int i = 0; i < argc - 3; i++) {
		char *text = argv[3 + i], *colon = strchr(text, ':');
		if (colon) {
			*colon = 0;
			use_mki = 1;
			keys[i].mki_id = mkis[i];
			keys[i].mki_size = unhex(text, mkis[i]);
			text = colon + 1;
		}
		unhex(text, material[i]);
		keys[i].key = material[i];
		list[i] = &keys[i];
	}
	int protect = !strncmp(argv[1], "protect", 7), rtcp = strstr(argv[1], "rtcp") != NULL;
	policy.keys = list;
	policy.num_master_keys = argc - 3;
	policy.ssrc.type = protect ? ssrc_any_outbound : ssrc_any_inbound;
	policy.window_size = 1024;
	if (srtp_create(&session, &policy)) return 3;

	for (;;) {
		unsigned char head[2];
		static unsigned char buf[MAX_PACKET + 256] __attribute__((aligned(8))), request[MAX_PACKET];
		whole(0, head, 2, 0);
		int n = head[0] << 8 | head[1], failed;
		if (n < 1 || n > MAX_PACKET) return 4;
		whole(0, request, n, 0);
		n--;
		memcpy(buf, request + 1, n); // aligned, as libsrtp wants it
		if (protect)
			failed = rtcp ? srtp_protect_rtcp_mki(session, buf, &n, use_mki, request[0])
				      : srtp_protect_mki(session, buf, &n, use_mki, request[0]);
		else
			failed = rtcp ? srtp_unprotect_rtcp_mki(session, buf, &n, use_mki)
				      : srtp_unprotect_mki(session, buf, &n, use_mki);
		if (failed) n = 0;
		head[0] = n >> 8;
		head[1] = n;
		whole(1, head, 2, 1);
		whole(1, buf, n, 1);
	}
}
