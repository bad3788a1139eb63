import os
import ssl
import sys

import httpx

context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
response = httpx.get(sys.argv[1], timeout=10, verify=context)
print(response.text)
sys.exit(0 if response.is_success else f"status {response.status_code}")
