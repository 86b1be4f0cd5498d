/**
 * A certificate that is its own authority, for servers of tests on loopback, valid from 2020 to 2120. Its key protects
 * nothing. Made anew with (OpenSSL 3.4 or later):
 *
 *   openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -not_before 20200101000000Z \
 *     -not_after 21200101000000Z -subj "/CN=doublehull test" -keyout key.pem -out cert.pem \
 *     -addext "subjectAltName=DNS:api.example.test,DNS:files.example.test,DNS:other.test"
 */
export const key = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg8MkWbolNU9Wyy18d
0rObMQ4jxiTGQTK8Dn59QAsUlBuhRANCAATpLIi+mB+fCJM6mw6hjEHBQfW2VwbW
QIZDgx+ERZJWXRXikyauOQNW2DhDcXXV53ufRipNUVAuYccyz1Qu/gWn
-----END PRIVATE KEY-----
`;

export const cert = `-----BEGIN CERTIFICATE-----
MIIBlDCCATqgAwIBAgIBATAKBggqhkjOPQQDAjAaMRgwFgYDVQQDDA9kb3VibGVo
dWxsIHRlc3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBoxGDAW
BgNVBAMMD2RvdWJsZWh1bGwgdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IA
BOksiL6YH58IkzqbDqGMQcFB9bZXBtZAhkODH4RFklZdFeKTJq45A1bYOENxddXn
e59GKk1RUC5hxzLPVC7+BaejbzBtMDsGA1UdEQQ0MDKCEGFwaS5leGFtcGxlLnRl
c3SCEmZpbGVzLmV4YW1wbGUudGVzdIIKb3RoZXIudGVzdDAPBgNVHRMBAf8EBTAD
AQH/MB0GA1UdDgQWBBRHD9+BGPlYjUdTnb8TCFtIslgBbzAKBggqhkjOPQQDAgNI
ADBFAiEA4+6qZKlo5HIg8zqROE9MzRPN/lK+zj4SPPWD6EWQK+ACIEX/PAx8SZYM
6wojg+v2xcbhlq0bif03gr2iGhWmOQeM
-----END CERTIFICATE-----
`;
